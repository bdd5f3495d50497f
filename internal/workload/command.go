package workload

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// An ImageConfig is what an image's config says of the process to run.
type ImageConfig struct {
	Entrypoint, Cmd, Env []string
	WorkingDir, User     string
	Labels               map[string]string // of the author's policy, for CheckPolicy
}

// An Override is what the manifest says of it. Zero fields say nothing.
type Override struct {
	Args      []string          // instead of the image's Cmd; its Entrypoint stays
	Env       map[string]string // one by one over the image's
	Cwd, User string
}

// defaults are for programs that count on them; they are constants, so that nothing of PID 1's own environment, which
// the boot loader can write to, gets through.
var defaults = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp"}

// Command merges an image's config and a manifest, as container engines do: argv is Entrypoint, then Cmd or the
// manifest's args. env is the whole environment, from these two and nowhere else but for PATH and HOME where neither
// sets them. cwd is absolute, /cocos where neither says anything. user is for LookupUser.
func Command(c ImageConfig, o Override) (args, env []string, cwd, user string, err error) {
	args = slices.Clone(c.Entrypoint)
	if o.Args != nil {
		args = append(args, o.Args...)
	} else {
		args = append(args, c.Cmd...)
	}
	if len(args) == 0 || args[0] == "" {
		return nil, nil, "", "", errors.New("nothing to run: the image has no entrypoint and no command; give args in the manifest")
	}
	if env, err = mergeEnv(c.Env, o.Env); err != nil {
		return nil, nil, "", "", err
	}
	if cwd = first(o.Cwd, c.WorkingDir, defaultCwd); !path.IsAbs(cwd) {
		cwd = "/" + cwd
	}
	cwd = path.Clean(cwd)
	for _, s := range append(slices.Concat(args, env), cwd) {
		if strings.ContainsRune(s, 0) {
			return nil, nil, "", "", fmt.Errorf("%q has a zero byte in it, which no argument, variable or path can have", s)
		}
	}
	return args, env, cwd, first(o.User, c.User), nil
}

// mergeEnv keeps the image's order; of two values of one name the later is taken.
func mergeEnv(image []string, manifest map[string]string) ([]string, error) {
	var env []string
	at := map[string]int{}
	set := func(name, value string) {
		kv := name + "=" + value
		if i, ok := at[name]; ok {
			env[i] = kv
			return
		}
		at[name] = len(env)
		env = append(env, kv)
	}
	for _, kv := range image {
		name, value, ok := strings.Cut(kv, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("environment of the image: %q is not NAME=value", kv)
		}
		set(name, value)
	}
	for _, name := range slices.Sorted(maps.Keys(manifest)) {
		if name == "" || strings.Contains(name, "=") {
			return nil, fmt.Errorf("environment of the manifest: %q is not a name", name)
		}
		set(name, manifest[name])
	}
	for _, kv := range defaults {
		if name, value, _ := strings.Cut(kv, "="); !has(at, name) {
			set(name, value)
		}
	}
	return env, nil
}

func has(m map[string]int, k string) bool { _, ok := m[k]; return ok }

func first(s ...string) string {
	for _, v := range s {
		if v != "" {
			return v
		}
	}
	return ""
}

// getEnv is the last value of a variable, "" if there is none.
func getEnv(env []string, name string) (value string) {
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			value = v
		}
	}
	return value
}
