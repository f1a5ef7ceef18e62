"""Golden references: a few images with what every artifact must say of them, checked before it is measured."""
