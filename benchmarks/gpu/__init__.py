"""`make gpu-proof`: the GPU half exported, proven and measured in one command."""
