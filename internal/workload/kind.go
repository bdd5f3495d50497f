package workload

import (
	"fmt"
	"os"
	"path"
)

// A Tree is an unpacked image, archive or file, and the image's config; files have none.
type Tree struct {
	Dir    string
	Config ImageConfig
}

// A Job is what is to be run, of what, and what the manifest says of it.
type Job struct {
	Kind      string
	Algorithm Tree
	Runtime   *Tree  // python alone: the image with the interpreter; nil: the algorithm has it
	Path      string // of the algorithm in its tree, slash-separated and relative; "": it is looked for
	Override
}

// kinds are the ways to make a program of a Job.
var kinds = []struct {
	name string
	plan func(*planner) error
}{
	{"oci", (*planner).oci},
	{"bin", (*planner).bin},
	{"python", (*planner).python},
	{"wasm", (*planner).wasm},
}

// A planner is what a kind works on. It fills in Args, Env, Cwd and user, Root where that is not the algorithm's tree, and what is laid into
// the sandbox.
type planner struct {
	job  *Job
	spec *Spec
	tree *os.Root // the algorithm's
	user string   // for LookupUser
	file string   // the algorithm's path in its tree; "": the tree as a whole is the algorithm
}

// Plan says how a job is run: the Spec that it returns lacks folders, limits and output. file is the algorithm's one file, relative to its
// tree, made readable to everyone; "" if the kind runs no single file. Errors are the image's or the manifest's fault.
func Plan(j *Job) (s *Spec, file string, err error) {
	for _, k := range kinds {
		if k.name != j.Kind {
			continue
		}
		p := &planner{job: j, spec: &Spec{Root: j.Algorithm.Dir}}
		if p.tree, err = os.OpenRoot(j.Algorithm.Dir); err != nil {
			return nil, "", err
		}
		defer p.tree.Close()
		if err := k.plan(p); err != nil {
			return nil, "", err
		}
		p.spec.UID, p.spec.GID, err = LookupUser(p.spec.Root, p.user)
		return p.spec, p.file, err
	}
	return nil, "", fmt.Errorf("workload %q is no kind of this build", j.Kind)
}

// oci is a container: the image's entrypoint.
func (p *planner) oci() error { return p.command(&p.job.Algorithm.Config) }

func (p *planner) command(c *ImageConfig) (err error) {
	s := p.spec
	s.Args, s.Env, s.Cwd, p.user, err = Command(*c, p.job.Override)
	return err
}

// bin is an executable: of no interpreter, with the libraries that the image has.
func (p *planner) bin() error { return p.single(&programFormat) }

// Where Cocos' conventions have the algorithm, and its list of Python packages.
const (
	algorithmFile    = defaultCwd + "/algo"
	requirementsFile = defaultCwd + "/requirements.txt"
	algorithmDir     = defaultCwd + "/algorithm" // its tree, where another image is the root
)

// single prepares what the kinds that run one file of the algorithm have in common. Of the image's config they take the environment and the
// user; its entrypoint, if it names the file, is a way to find it and no more.
func (p *planner) single(f *format, env ...string) (err error) {
	if err := p.find(f); err != nil {
		return err
	}
	c := &p.job.Algorithm.Config
	return p.command(&ImageConfig{Entrypoint: []string{algorithmFile}, Env: append(env, c.Env...), User: c.User})
}

// find finds the file, and gives it the name that Cocos has for it.
func (p *planner) find(f *format) (err error) {
	p.file, err = find(p.tree, &p.job.Algorithm.Config, p.job.Path, f)
	p.spec.Links = map[string]string{algorithmFile: p.place(p.file)}
	return err
}

// place is where the sandbox has a path of the algorithm's tree.
func (p *planner) place(name string) string {
	if p.spec.Algorithm != "" {
		return path.Join(algorithmDir, name)
	}
	return path.Join("/", name)
}
