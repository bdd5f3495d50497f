package manifest

import "slices"

// Pin writes digests behind the references that have none, as resolve finds them (sha256:…), and changes not another
// byte: spelling, order and white space stay, and so do tags, which then say where the digest came from. Of a manifest
// with nothing to pin it returns a copy. The manifest must be right otherwise; errors are Problems.
func Pin(raw []byte, resolve func(uri string) (digest string, err error)) ([]byte, error) {
	_, references, err := parse(raw, func(string) bool { return true })
	if err != nil {
		return nil, err
	}
	slices.SortFunc(references, func(a, b *node) int { return a.start - b.start })
	r := &reader{}
	known := map[string]string{}
	var out []byte
	at := 0
	for _, n := range references {
		digest, ok := known[n.text]
		if !ok {
			if digest, err = resolve(n.text); err == nil {
				err = checkDigest(digest)
			}
			if err != nil {
				r.problem(n.path, "%.200q: %v", n.text, err)
			}
			known[n.text] = digest
		}
		quote := n.end - 1
		out = append(append(append(out, raw[at:quote]...), '@'), digest...)
		at = quote
	}
	if len(r.problems) > 0 {
		return nil, r.problems
	}
	return append(out, raw[at:]...), nil
}
