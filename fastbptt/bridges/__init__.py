"""Other tools on top of fastbptt: one file a tool, each importing only its own."""
