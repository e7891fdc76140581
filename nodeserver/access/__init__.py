"""Who may do what: tokens signed with the server's Ed25519 key."""
