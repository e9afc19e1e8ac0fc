"""The conversation of `safevlm chat`: what is talked to, what was said, the commands, and the terminal."""
