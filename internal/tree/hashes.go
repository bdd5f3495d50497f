package tree

// hashes is a set of hashes, which must be random. It takes 11 to 21 bytes for each, under half of what a map does.
type hashes struct {
	slots []uint64 // a power of two of them, 0 is free
	n     int
}

// at is where h is, or where it should be put.
func (s *hashes) at(h uint64) int {
	mask := len(s.slots) - 1
	k := int(h) & mask
	for s.slots[k] != 0 && s.slots[k] != h {
		k = (k + 1) & mask
	}
	return k
}

func (s *hashes) has(h uint64) bool { return s.n > 0 && s.slots[s.at(max(h, 1))] != 0 }

// add says whether h is new.
func (s *hashes) add(h uint64) bool {
	h = max(h, 1)
	if s.n >= len(s.slots)/4*3 {
		old := s.slots
		s.slots = make([]uint64, max(64, 2*len(old)))
		for _, h := range old {
			if h != 0 {
				s.slots[s.at(h)] = h
			}
		}
	}
	k := s.at(h)
	if s.slots[k] == h {
		return false
	}
	s.slots[k] = h
	s.n++
	return true
}
