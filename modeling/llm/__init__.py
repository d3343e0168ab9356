"""Language models behind one interface: visual tokens and an instruction in, words and their states out."""
