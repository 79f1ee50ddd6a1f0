"""The LMTP side: knows who has a mailbox, publishes deliveries, holds the replies."""
