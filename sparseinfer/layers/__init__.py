"""The drop-in modules, and what is known of each kind of layer."""
