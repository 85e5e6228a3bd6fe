"""How each family of models wants its frames, and how it speaks."""
