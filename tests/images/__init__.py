"""What is in our images, told by the Dockerfile and by building them."""
