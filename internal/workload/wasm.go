package workload

// wasm is a module for WASI preview 1. Spec.Program must be the helper that runs it: it finds the module at Args[0].
func (p *planner) wasm() error {
	// A module has no working directory of its own; what resolves relative paths for it reads this.
	return p.single(&moduleFormat, "PWD="+defaultCwd)
}
