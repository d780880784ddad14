"""What the tests share: tiny random vision-language models of every family, and inputs for them."""
