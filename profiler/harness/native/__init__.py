"""The embedded sandbox: a command on this host's own files, in namespaces of its own. Light: the helper imports it."""
