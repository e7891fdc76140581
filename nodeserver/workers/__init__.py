"""Work that goes on behind the requests: what there is, and how often it is done."""
