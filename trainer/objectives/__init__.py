"""What the networks are trained on: flow matching, contrastive losses, masks; and the sampler that inverts the flow."""
