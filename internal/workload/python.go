package workload

import (
	"errors"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
)

// python is a script for CPython, of the algorithm's own image or of a runtime's. Nothing is installed: what requirements.txt lists must be
// in one of the images.
func (p *planner) python() error {
	root, c, env := p.tree, &p.job.Algorithm.Config, p.job.Algorithm.Config.Env
	if t := p.job.Runtime; t != nil {
		p.spec.Root, p.spec.Algorithm = t.Dir, p.job.Algorithm.Dir
		c, env = &t.Config, append(slices.Clone(t.Config.Env), portable(env)...)
		r, err := os.OpenRoot(t.Dir)
		if err != nil {
			return err
		}
		defer r.Close()
		root = r
	}
	if err := p.find(&scriptFormat); err != nil {
		return err
	}
	if folders := p.requirements(path.Dir(p.file)); folders != "" {
		env = append(slices.Clone(env), "PYTHONPATH="+strings.TrimSuffix(folders+":"+getEnv(env, "PYTHONPATH"), ":"))
	}
	if err := p.command(&ImageConfig{Entrypoint: []string{"python3", algorithmFile}, Env: env, User: c.User}); err != nil {
		return err
	}
	if p.spec.Args[0] = findPython(root, c.Entrypoint, getEnv(p.spec.Env, "PATH")); p.spec.Args[0] == "" {
		return errors.New("no Python is in the PATH of the image; name one that has it as the manifest's runtime")
	}
	return nil
}

// portable leaves out what names places in an image's own tree, which is not the root.
func portable(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.Contains([]string{"PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONPATH"}, name)
	})
}

// vendored are the folders, beside the script or at the root of its tree, in which packages are looked for.
var vendored = []string{"site-packages", "vendor"}

// requirements puts requirements.txt where Cocos has it, and returns the folders of packages in the algorithm's tree, with colons between.
func (p *planner) requirements(beside string) string {
	var folders []string
	for _, at := range slices.Compact([]string{beside, "."}) {
		for _, name := range append(vendored, "requirements.txt") {
			name = path.Join(at, name)
			fi, err := p.tree.Stat(name)
			switch {
			case err != nil:
			case fi.IsDir():
				folders = append(folders, p.place(name))
			case p.spec.Links[requirementsFile] == "":
				p.spec.Links[requirementsFile] = p.place(name)
			}
		}
	}
	return strings.Join(folders, ":")
}

// findPython is the interpreter of an image: its entrypoint if that is one, else the first in PATH, by the names that distributions use; "" if
// there is none.
func findPython(r *os.Root, entrypoint []string, list string) (best string) {
	if len(entrypoint) > 0 && pythonRank(path.Base(entrypoint[0])) > 0 {
		return entrypoint[0]
	}
	rank := 0
	for dir := range strings.SplitSeq(list, ":") {
		f, err := r.Open(strings.TrimPrefix(path.Clean(dir), "/"))
		if err != nil {
			continue
		}
		names, _ := f.Readdirnames(-1) // not opened: a link may be absolute, so that it makes sense in the sandbox alone
		f.Close()
		for _, name := range names {
			if n := pythonRank(name); n > rank {
				best, rank = path.Join("/", dir, name), n
			}
		}
	}
	return best
}

// pythonRank orders the names of interpreters: python3, python, then the newest of those with their version in the name; 0 is none.
func pythonRank(name string) int {
	switch name {
	case "python3":
		return 1002
	case "python":
		return 1001
	}
	if s, ok := strings.CutPrefix(name, "python3."); ok {
		if n, err := strconv.ParseUint(s, 10, 8); err == nil {
			return 1 + int(n)
		}
	}
	return 0
}
