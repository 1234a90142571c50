"""What an answer must be, token by token: grammars, compiled for a vocabulary, and the constraints they make."""

from deepwell.grammar.constraint import AfterTrigger, Allowed, Constraint, ConstraintError, masks_of

__all__ = ["AfterTrigger", "Allowed", "Constraint", "ConstraintError", "masks_of"]
