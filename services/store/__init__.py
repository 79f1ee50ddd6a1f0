"""The Maildir side: consumes deliveries, writes them durably, acknowledges."""
