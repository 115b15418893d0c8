"""Why one peer believes another: root, invitations, role certificates, permits, revocations."""
