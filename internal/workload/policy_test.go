package workload

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

func TestCheckPolicy(t *testing.T) {
	all := Job{Kind: "python", Runtime: &Tree{}, Path: "a.py", Override: Override{Args: []string{}, Env: map[string]string{"A": "", "B": ""}, Cwd: "/x", User: "1"}}
	oci := func(o Override) Job { return Job{Kind: "oci", Override: o} }
	for name, c := range map[string]struct {
		labels string // NAME=value separated by spaces, without the prefix
		job    Job
		files  []string
		logs   bool // to the host
		debug  bool
		want   []string // what is refused
	}{
		"no labels allow all":              {"", all, []string{"/x"}, true, false, nil},
		"other labels are none":            {"!maintainer=me", all, []string{"/x"}, true, false, nil},
		"one label, and all else is shut":  {"allow_cgroups=true", all, []string{"/x"}, true, false, []string{"args or algorithm.path", "user", "cwd", "runtime", "workload python", "env.A", "env.B", "files /x", "logs"}},
		"one label, and nothing is asked":  {"allow_cmd_override=false", oci(Override{}), nil, false, false, nil},
		"all labels":                       {"allow_cmd_override=true allow_env_override=A,B allow_mount_destinations=/x log_redirect=always allow_user_override=true allow_cwd_override=1 allow_workloads=bin,python allow_runtime=true", all, []string{"/x"}, true, false, nil},
		"arguments":                        {"allow_cmd_override=true", oci(Override{Args: []string{"a"}}), nil, false, false, nil},
		"no arguments, which is to say so": {"allow_cmd_override=false", oci(Override{Args: []string{}}), nil, false, false, []string{"args or"}},
		"a variable too many":              {"allow_env_override=A,,C", oci(Override{Env: map[string]string{"A": "", "AB": "", "C": ""}}), nil, false, false, []string{"env.AB"}},
		"files below":                      {"allow_mount_destinations=/a:/b/:c", oci(Override{}), []string{"/a/x", "/b/y/z", "/ab", "/c"}, false, false, []string{"files /ab", "files /c"}},
		"files anywhere":                   {"allow_mount_destinations=/", oci(Override{}), []string{"/a/x"}, false, false, nil},
		"a kind that is not listed":        {"allow_workloads=python", Job{Kind: "bin"}, nil, false, false, []string{"workload bin"}},
		"output, where nothing is said":    {"allow_cmd_override=true", oci(Override{}), nil, true, false, []string{"logs"}},
		"output, on a machine to learn":    {"log_redirect=DebugOnly", oci(Override{}), nil, true, true, nil},
		"output, never":                    {"log_redirect=never", oci(Override{}), nil, true, true, []string{"logs"}},
		"a flag that is none":              {"allow_cmd_override=yes", oci(Override{Args: []string{"a"}}), nil, false, false, []string{"args or"}},
		"a word that is none":              {"log_redirect=sometimes", oci(Override{}), nil, true, true, []string{"logs"}},
	} {
		t.Run(name, func(t *testing.T) {
			label := map[string]string{}
			for kv := range strings.FieldsSeq(c.labels) {
				name, value, _ := strings.Cut(kv, "=")
				if other, ok := strings.CutPrefix(name, "!"); ok {
					label[other] = value
				} else {
					label[labels+name] = value
				}
			}
			c.job.Algorithm.Config.Labels = label
			err := CheckPolicy(&c.job, c.files, c.logs, c.debug)
			if err == nil && c.want == nil {
				return
			}
			got := regexp.MustCompile(` \([^)]*\)(, )?`).Split(strings.TrimPrefix(fmt.Sprint(err), "the image's author does not allow, by its labels: "), -1)
			if len(got) != len(c.want)+1 {
				t.Fatalf("%q, want %q", got, c.want)
			}
			for i, want := range c.want {
				if !strings.HasPrefix(got[i], want) {
					t.Errorf("%q, want %q", got[i], want)
				}
			}
		})
	}
}
