"""How far generated patches are from real ones, measured octave by octave."""
