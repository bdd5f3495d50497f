package workload

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// tree makes files in a new folder; a name with a slash at the end is a folder, "a -> b" a link.
func tree(t *testing.T, parent, name string, files ...string) string {
	t.Helper()
	dir := filepath.Join(parent, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		from, to, link := strings.Cut(f, " -> ")
		path := filepath.Join(dir, from)
		err := os.MkdirAll(filepath.Dir(path), 0o700)
		switch {
		case err != nil:
		case link:
			err = os.Symlink(to, path)
		case strings.HasSuffix(from, "/"):
			err = os.MkdirAll(path, 0o700)
		default:
			err = os.WriteFile(path, []byte(name+" "+f), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// list is what is below dir, with modes.
func list(t *testing.T, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		fi, err := e.Info()
		name, _ := filepath.Rel(dir, path)
		all = append(all, fi.Mode().String()+" "+name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

func TestLayDatasets(t *testing.T) {
	for _, tc := range []struct {
		name string
		sets map[string][]string // "name filename" → files
		want []string
	}{
		{"one file gets the name that the manifest gives",
			map[string][]string{"a houses.csv": {"data/2026/x.csv", "empty/"}},
			[]string{"-rw-r--r-- houses.csv"}},
		{"several files stay together below the name",
			map[string][]string{"a images": {"1.png", "more/2.png"}},
			[]string{"-rw-r--r-- images/1.png", "-rw-r--r-- images/more/2.png", "drwxr-xr-x images", "drwxr-xr-x images/more"}},
		{"a file and a link are several",
			map[string][]string{"a set": {"1", "2 -> 1"}},
			[]string{"-rw-r--r-- set/1", "Lrwxrwxrwx set/2", "drwxr-xr-x set"}},
		{"without a name the entries go where all go",
			map[string][]string{"a ": {"x.csv", "dir/y.csv"}, "b ": {"z.csv"}},
			[]string{"-rw-r--r-- dir/y.csv", "-rw-r--r-- x.csv", "-rw-r--r-- z.csv", "drwxr-xr-x dir"}},
		{"nothing", nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			parent := t.TempDir()
			dir := tree(t, parent, "datasets")
			var sets []Dataset
			for key, files := range tc.sets {
				name, filename, _ := strings.Cut(key, " ")
				sets = append(sets, Dataset{Name: name, Dir: tree(t, parent, name, files...), Filename: filename})
			}
			if err := LayDatasets(dir, sets); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, list(t, dir)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if left := names(parent); !slices.Equal(left, []string{"datasets"}) {
				t.Errorf("left behind: %q", left)
			}
			if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o755 {
				t.Errorf("datasets: %v, %v", fi.Mode(), err)
			}
		})
	}
}

func TestLayDatasetsRefuses(t *testing.T) {
	for _, tc := range []struct {
		name string
		a, b Dataset
		want string
	}{
		{"one name for two", Dataset{Filename: "x"}, Dataset{Filename: "x"}, `datasets[0] and datasets[1] both have "x"`},
		{"a name that another brings along", Dataset{}, Dataset{Filename: "a.csv"}, `datasets[0] and datasets[1] both have "a.csv"`},
		{"a path as name", Dataset{Filename: "../x"}, Dataset{Filename: "y"}, `datasets[0]: filename "../x"`},
		{"a parent as name", Dataset{Filename: "x"}, Dataset{Filename: ".."}, `datasets[1]: filename ".."`},
		{"an empty dataset", Dataset{Filename: "x"}, Dataset{Dir: "empty"}, "datasets[1]: the dataset has no files"},
		{"a missing one", Dataset{Filename: "x"}, Dataset{Dir: "none"}, "datasets[1]: "},
		{"a name that is taken", Dataset{Filename: "there"}, Dataset{Filename: "y"}, "is there already"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			parent := t.TempDir()
			dir := tree(t, parent, "datasets", "there")
			tree(t, parent, "empty", "folder/")
			tc.a.Name, tc.b.Name = "datasets[0]", "datasets[1]"
			tc.a.Dir = tree(t, parent, "one", "a.csv")
			if tc.b.Dir == "" {
				tc.b.Dir = tree(t, parent, "two", "b.csv")
			} else {
				tc.b.Dir = filepath.Join(parent, tc.b.Dir)
			}
			err := LayDatasets(dir, []Dataset{tc.a, tc.b})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
			if got := list(t, dir); !slices.Equal(got, []string{"-rw------- there"}) {
				t.Errorf("moved all the same: %q", got)
			}
		})
	}
}

func TestLayDatasetsLeavesTheTargetOfALinkAlone(t *testing.T) {
	parent := t.TempDir()
	outside := filepath.Join(tree(t, parent, "outside", "secret"), "secret")
	dir := tree(t, parent, "datasets")
	set := tree(t, parent, "set", "file", "link -> "+outside)
	if err := LayDatasets(dir, []Dataset{{Name: "set", Dir: set}}); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Lstat(outside); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("target of the link: %v, %v", fi, err)
	}
	if to, err := os.Readlink(filepath.Join(dir, "link")); err != nil || to != outside {
		t.Errorf("link: %q, %v", to, err)
	}
}
