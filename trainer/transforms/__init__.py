"""What happens to a clip between the shard and the model: named components that draw from the sample's own seed."""
