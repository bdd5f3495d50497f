package manifest

import (
	"path"
	"slices"
	"strings"
)

// Kinds are the ways to run an algorithm, as Workload.Kind names them.
var Kinds = []string{"oci", "bin", "python", "wasm"}

// kind reads how the algorithm is run. Cocos says docker for an image with an entrypoint.
func (r *reader) kind(o *object, name, absent string) string {
	k := o.text(name)
	switch {
	case k == "":
		return absent
	case k == "docker" && name == "algo_type":
		return "oci"
	case !slices.Contains(Kinds, k):
		r.problem(o.path(name), "%.40q is unknown; want one of %s", k, strings.Join(Kinds, ", "))
	}
	return k
}

// algorithmFile judges what only a kind that runs one file can have: the file's place in the image, its digest, and a file that is no image.
func (r *reader) algorithmFile(a *object, res *Resource, m *Manifest) {
	oci := m.Workload.Kind == "oci"
	f, isFile := r.objects[res]
	for _, name := range []string{"path", "sha256", "sha3_256", "hash"} {
		if oci && a.known[name] && a.has(name) && (name != "hash" || res.SHA3_256 != nil) {
			r.problem(a.path(name), "is of one file, and here an image's own entrypoint is run: pin the image by digest, or say another kind, %s",
				strings.Join(Kinds[1:], ", "))
		}
	}
	if isFile && oci {
		r.problem(f.at, "%.200q: is a file, which has no entrypoint to run; want an oci-image, docker://host/repository@sha256:…, or another kind, %s",
			withoutQuery(res.URI), strings.Join(Kinds[1:], ", "))
		return
	}
	if isFile && !res.Decompress {
		res.Filename = "algo"
		if m.Workload.Path != "" {
			r.problem(a.path("path"), "is of an image or an archive, and the algorithm is one file")
		}
	}
	r.file(a, res, nil)
}

// algorithmPath reads which file of the image the algorithm is.
func (r *reader) algorithmPath(a *object) string {
	s := a.text("path")
	p := strings.TrimPrefix(s, "/")
	if s != "" && (p == "" || path.Clean("/"+p) != "/"+p || len(p) > 4096) {
		r.problem(a.path("path"), "%.200q: want a file's path in the image, without . or ..", s)
	}
	return p
}

// runtime reads the image that has the interpreter where the algorithm's has none.
func (r *reader) runtime(o *object, m *Manifest) []wish {
	e := o.child("runtime")
	if e == nil {
		return nil
	}
	if m.Workload.Kind != "python" {
		r.problem(o.path("runtime"), `is of the kind python, and the kind is %s; drop it, or say "workload": "python"`, m.Workload.Kind)
	}
	res := r.where(e, false)
	if f, ok := r.objects[res]; ok {
		r.problem(f.at, "%.200q: is a file; a runtime is an oci-image, docker://host/repository@sha256:…", withoutQuery(res.URI))
	} else {
		r.keyPath(e, res)
	}
	w := wish{res, e.n.path, r.broker(e, true)}
	e.done()
	m.Runtime = res
	return []wish{w}
}
