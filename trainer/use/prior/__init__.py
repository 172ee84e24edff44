"""`javisc build prior`: what stage 2's negatives are made of, made once and offline; each stage has the shape of `stage.py`."""
