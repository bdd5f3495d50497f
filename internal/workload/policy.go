package workload

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
)

// The labels by which an image's author says what a manifest may change. The first four are Confidential Space's; the others are ours, in
// the same form, for what only our manifests can say.
const (
	labels       = "tee.launch_policy."
	allowCmd     = labels + "allow_cmd_override"       // true: args, and which file of the image is run
	allowEnv     = labels + "allow_env_override"       // names of variables, separated by commas
	allowMounts  = labels + "allow_mount_destinations" // folders, separated by colons, below which files may be laid
	logRedirect  = labels + "log_redirect"             // always, never, debugonly: output to the host
	allowUser    = labels + "allow_user_override"      // true
	allowCwd     = labels + "allow_cwd_override"       // true
	allowKinds   = labels + "allow_workloads"          // kinds besides oci, separated by commas
	allowRuntime = labels + "allow_runtime"            // true: an interpreter of another image
)

// CheckPolicy refuses what a manifest asks for and the labels of the algorithm's image do not allow. files are the paths of those that are
// laid over the image; hostLogs says that the output goes to the host, debug that the machine is one for learning.
//
// An image with none of these labels allows all: a manifest is no operator's wish, it is bound to the evidence, and whoever gives a key
// gives it to one manifest. One label makes the policy strict: whatever is not allowed is refused,
// and a value that cannot be read allows nothing.
func CheckPolicy(j *Job, files []string, hostLogs, debug bool) error {
	label, strict := j.Algorithm.Config.Labels, false
	for name := range label {
		strict = strict || strings.HasPrefix(name, labels)
	}
	if !strict {
		return nil
	}
	var refused []string
	check := func(allowed bool, key, name string) {
		if !allowed {
			refused = append(refused, fmt.Sprintf("%s (%s=%q)", key, name, label[name]))
		}
	}
	for _, flag := range []struct {
		key, name string
		asked     bool
	}{
		{"args or algorithm.path", allowCmd, j.Args != nil || j.Path != ""},
		{"user", allowUser, j.User != ""},
		{"cwd", allowCwd, j.Cwd != ""},
		{"runtime", allowRuntime, j.Runtime != nil},
	} {
		allowed, _ := strconv.ParseBool(label[flag.name])
		check(allowed || !flag.asked, flag.key, flag.name)
	}
	check(j.Kind == "oci" || slices.Contains(strings.Split(label[allowKinds], ","), j.Kind), "workload "+j.Kind, allowKinds)
	for _, name := range slices.Sorted(maps.Keys(j.Env)) {
		check(slices.Contains(strings.Split(label[allowEnv], ","), name), "env."+name, allowEnv)
	}
	for _, f := range files {
		check(slices.ContainsFunc(strings.Split(label[allowMounts], ":"), func(dir string) bool {
			dir = path.Clean(dir)
			return dir == "/" || path.IsAbs(dir) && below(f, dir)
		}), "files "+f, allowMounts)
	}
	redirect := strings.ToLower(label[logRedirect])
	check(!hostLogs || redirect == "always" || debug && (redirect == "debugonly" || redirect == ""), "logs", logRedirect)
	if refused == nil {
		return nil
	}
	return fmt.Errorf("the image's author does not allow, by its labels: %s; drop it from the manifest, or ask for another image",
		strings.Join(refused, ", "))
}
