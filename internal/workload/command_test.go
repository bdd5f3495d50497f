package workload

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCommand(t *testing.T) {
	const path, home = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp"
	type want struct {
		Args, Env []string
		Cwd, User string
	}
	for _, tc := range []struct {
		name  string
		image ImageConfig
		over  Override
		want  want
	}{
		{"entrypoint and command of the image",
			ImageConfig{Entrypoint: []string{"/e"}, Cmd: []string{"c"}, WorkingDir: "/w", User: "app"}, Override{},
			want{[]string{"/e", "c"}, []string{path, home}, "/w", "app"}},
		{"the manifest's args replace the command only",
			ImageConfig{Entrypoint: []string{"/e", "-v"}, Cmd: []string{"c"}}, Override{Args: []string{"a", ""}},
			want{[]string{"/e", "-v", "a", ""}, []string{path, home}, "/cocos", ""}},
		{"empty args replace it too",
			ImageConfig{Entrypoint: []string{"/e"}, Cmd: []string{"c"}}, Override{Args: []string{}},
			want{[]string{"/e"}, []string{path, home}, "/cocos", ""}},
		{"args are the program where there is no entrypoint",
			ImageConfig{}, Override{Args: []string{"python3", "x.py"}},
			want{[]string{"python3", "x.py"}, []string{path, home}, "/cocos", ""}},
		{"variables: image, then manifest over it, then defaults",
			ImageConfig{Cmd: []string{"c"}, Env: []string{"B=1", "PATH=/p", "A=x=y", "B=2"}}, Override{Env: map[string]string{"A": "z", "Z": "", "C": "3"}},
			want{[]string{"c"}, []string{"B=2", "PATH=/p", "A=z", "C=3", "Z=", home}, "/cocos", ""}},
		{"an empty PATH of the image stays",
			ImageConfig{Cmd: []string{"c"}, Env: []string{"PATH=", "HOME=/h"}}, Override{},
			want{[]string{"c"}, []string{"PATH=", "HOME=/h"}, "/cocos", ""}},
		{"folder and user of the manifest",
			ImageConfig{Cmd: []string{"c"}, WorkingDir: "/w", User: "app"}, Override{Cwd: "a/../b/", User: "7:8"},
			want{[]string{"c"}, []string{path, home}, "/b", "7:8"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			args, env, cwd, user, err := Command(tc.image, tc.over)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, want{args, env, cwd, user}); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestCommandTakesNothingFromThisProcess(t *testing.T) {
	t.Setenv("LD_PRELOAD", "/evil.so")
	t.Setenv("PATH", "/evil")
	_, env, _, _, err := Command(ImageConfig{Cmd: []string{"c"}}, Override{})
	if err != nil || strings.Contains(strings.Join(env, "\n"), "evil") {
		t.Errorf("environment %q, %v", env, err)
	}
}

func TestCommandRefuses(t *testing.T) {
	c := []string{"c"}
	for _, tc := range []struct {
		name  string
		image ImageConfig
		over  Override
		want  string
	}{
		{"nothing to run", ImageConfig{}, Override{}, "give args in the manifest"},
		{"an empty program", ImageConfig{Entrypoint: []string{""}}, Override{}, "nothing to run"},
		{"a variable without a value", ImageConfig{Cmd: c, Env: []string{"A"}}, Override{}, `"A" is not NAME=value`},
		{"a variable without a name", ImageConfig{Cmd: c, Env: []string{"=x"}}, Override{}, "not NAME=value"},
		{"a manifest variable without a name", ImageConfig{Cmd: c}, Override{Env: map[string]string{"": "x"}}, "not a name"},
		{"a manifest variable with =", ImageConfig{Cmd: c}, Override{Env: map[string]string{"A=B": "x"}}, "not a name"},
		{"a zero byte in args", ImageConfig{Cmd: []string{"c\x00d"}}, Override{}, "zero byte"},
		{"a zero byte in a variable", ImageConfig{Cmd: c}, Override{Env: map[string]string{"A": "\x00"}}, "zero byte"},
		{"a zero byte in the folder", ImageConfig{Cmd: c, WorkingDir: "/\x00"}, Override{}, "zero byte"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, _, _, _, err := Command(tc.image, tc.over); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}
