"""`shards report`: a store on one self-contained page. The numbers come from `shards.report`."""
