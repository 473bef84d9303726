"""Entry point of mmengine: it imports ``<scope>.registry`` when a config has ``type='mmws.<Name>'``."""

from mmws.openmmlab.registry import HOOKS, MODELS, TRANSFORMS, build

__all__ = ['HOOKS', 'MODELS', 'TRANSFORMS', 'build']
