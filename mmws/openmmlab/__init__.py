"""Integration with OpenMMLab: registry, pretrained weights, stock configs, hooks and the table of toolkits."""
