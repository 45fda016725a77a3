"""What data-parallel ranks keep of the state of training: all of it, or a share each."""
