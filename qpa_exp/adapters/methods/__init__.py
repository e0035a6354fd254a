"""The PEFT methods: one file for each of our own, PEFT's own registry for the rest."""
