package kbsserver

import "testing"

func TestStatus(t *testing.T) {
	for _, c := range []struct {
		vector map[string]int
		want   string
	}{
		{nil, "none"},
		{map[string]int{"hardware": 0, "executables": 1, "file-system": -1}, "none"},
		{map[string]int{"hardware": 2, "executables": 31, "file-system": 0}, "affirming"},
		{map[string]int{"hardware": -2, "executables": -32}, "affirming"},
		{map[string]int{"hardware": 2, "executables": 32}, "warning"},
		{map[string]int{"hardware": -33, "executables": 95}, "warning"},
		{map[string]int{"hardware": 96, "executables": 3}, "contraindicated"},
		{map[string]int{"hardware": 2, "executables": -97}, "contraindicated"},
		{map[string]int{"hardware": 127, "executables": -128}, "contraindicated"},
	} {
		if got := status(c.vector); got != c.want {
			t.Errorf("%v: %s, want %s", c.vector, got, c.want)
		}
	}
}
