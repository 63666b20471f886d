"""Reading some of an image's patches: a timm ViT on those tokens alone, any other classifier by masking the rest."""
