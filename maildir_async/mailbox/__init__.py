"""The mailbox: what most programs use."""
