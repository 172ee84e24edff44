"""Objects cut out of videos: annotations, masks between them, crops, and the files that others read."""
