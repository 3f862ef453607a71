"""Control vectors: directions that tell prompts apart, fitted or learned, with algebra and files."""
