"""What a run leaves for people: curves as a picture, a page to read, and several runs side by side."""
