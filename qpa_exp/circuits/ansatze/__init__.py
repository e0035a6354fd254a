"""The circuit's layer (``qpa.ansatz``), or a control in the circuit's place: one file each."""
