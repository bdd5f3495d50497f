package manifest

// remote reads the remote-resources spelling of Cocos' documentation (wire/SPEC.md §6.4, shape 2).
func (r *reader) remote(o *object, m *Manifest) {
	m.Spelling = Remote
	r.identify(o, m, "computation_id")
	var wishes []wish
	if a := r.algorithm(o); a != nil {
		res := r.where(a, false)
		r.algorithmFile(a, res, m)
		wishes = append(wishes, wish{res, a.n.path, r.broker(a, true)})
		a.done()
	}
	taken := map[string]string{}
	for _, n := range o.list("datasets") {
		if d := r.object(n); d != nil {
			res := r.where(d, false)
			r.filename(d, res, taken)
			r.file(d, res, taken)
			wishes = append(wishes, wish{res, n.path, r.broker(d, true)})
			d.done()
		}
	}
	general := r.generalBroker(o)
	o.done()
	r.finish(m, wishes, general)
}

// generalBroker reads the broker of all resources, "kbs_url" or "kbs": {"url", "enabled"}; not more than one.
func (r *reader) generalBroker(o *object) []string {
	one := r.url(o, "kbs_url")
	c := r.broker(o, true)
	switch {
	case c.off || c.url == "" || c.url == one:
	case one != "":
		r.problem(o.path("kbs"), "is %s and kbs_url is %s; keep one", c.url, one)
	default:
		one = c.url
	}
	if one == "" {
		return nil
	}
	return []string{one}
}

// computation reads the JSON of Cocos' agent.Computation (wire/SPEC.md §6.4, shape 1).
func (r *reader) computation(o *object, m *Manifest) {
	m.Spelling = Computation
	r.identify(o, m, "id")
	o.text("name")
	o.get("description", '"')
	var wishes []wish
	if a := r.algorithm(o); a != nil {
		res := r.where(a, true)
		m.Workload.Kind = r.kind(a, "algo_type", "")
		res.SHA3_256 = r.hash(a)
		r.algorithmFile(a, res, m)
		r.base64Key(a, "user_key")
		m.Workload.Args = a.texts("algo_args")
		// Go leaves out what is false, so here silence means no.
		wishes = append(wishes, wish{res, a.n.path, r.broker(a, false)})
		a.done()
	}
	taken := map[string]string{}
	for _, n := range o.list("datasets") {
		if d := r.object(n); d != nil {
			res := r.where(d, true)
			res.SHA3_256 = r.hash(d)
			r.base64Key(d, "user_key")
			r.filename(d, res, taken)
			res.Decompress = d.flag("decompress", false)
			r.file(d, res, taken)
			wishes = append(wishes, wish{res, n.path, r.broker(d, false)})
			d.done()
		}
	}
	for _, n := range o.list("result_consumers") {
		if c := r.object(n); c != nil {
			if key := r.base64Key(c, "user_key"); len(key) > 0 {
				m.Results.Recipients = append(m.Results.Recipients, recipientOf(key))
			}
			c.done()
		}
	}
	o.done()
	r.finish(m, wishes, nil)
}

// hash is 32 numbers, the SHA3-256 of a file. Go always writes it, as zeros when it is not set: those are none.
func (r *reader) hash(o *object) []byte {
	list := o.list("hash")
	if !o.has("hash") {
		return nil
	}
	if len(list) != 32 {
		if o.members["hash"].kind == '[' {
			r.problem(o.path("hash"), "has %d numbers, want 32", len(list))
		}
		return nil
	}
	h, zero := make([]byte, 32), true
	for i, n := range list {
		h[i] = byte(r.number(n, 0, 255))
		zero = zero && h[i] == 0
	}
	if zero {
		return nil
	}
	return h
}

// identify reads the computation's id, which Cocos' spellings must have.
func (r *reader) identify(o *object, m *Manifest, key string) {
	m.ComputationID = o.text(key)
	switch n := len(m.ComputationID); {
	case n > 256:
		r.problem(o.path(key), "is %d bytes, at most 256", n)
	case n == 0 && m.Spelling != Own && o.members[key].kind == '"':
		r.problem(o.path(key), "is empty")
	}
}

func (r *reader) algorithm(o *object) *object {
	a := o.child("algorithm")
	if a == nil && !o.has("algorithm") {
		r.problem("algorithm", "is missing")
	}
	return a
}

// finish settles the brokers and puts the resources into the manifest, the algorithm first.
func (r *reader) finish(m *Manifest, wishes []wish, general []string) {
	r.settle(m, wishes, general)
	if a := wishes; m.Workload.Kind == "python" && m.Runtime == nil && len(a) > 0 && a[0].IsFile() && !a[0].Decompress {
		r.problem("runtime", "is missing: the algorithm is one file, and Python must come from an image")
	}
	for i, w := range wishes {
		switch {
		case i == 0:
			m.Algorithm = *w.Resource
		case w.Resource != m.Runtime:
			m.Datasets = append(m.Datasets, *w.Resource)
		}
	}
}
