"""Roost: the last step of mail delivery, as two services and the contract between them."""
