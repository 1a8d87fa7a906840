"""Cards: a stock image, and on its FAT partition all that makes it a device of a fleet."""
