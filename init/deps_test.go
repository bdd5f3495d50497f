package main

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/mkimage"
)

// The build tags of /init: as mkimage gives them to every image, and to one built --with cocos.
const (
	plainTags = "nethttpomithttp2,guest"
	cocosTags = "guest,cocos"
)

// never is what PID 1 does not link, with either: each is weight, a parser, or a way in that it has no use for.
var never = []string{
	"testing", "text/template", "html/template", "encoding/gob", "expvar", "net/http/httptest", "net/http/pprof", "net/rpc", "plugin",
	"google.golang.org/protobuf", "github.com/tetratelabs/wazero", "google.golang.org/grpc", "github.com/google/go-sev-guest", "github.com/google/go-tdx-guest",
	"github.com/containers/ocicrypt", "github.com/u-root/u-root",
	"github.com/google/go-containerregistry/pkg/v1", "github.com/google/go-containerregistry/pkg/authn", "github.com/docker/cli", "github.com/sirupsen/logrus",
	module + "/mkimage", module + "/qemu", module + "/cmd", module + "/test", module + "/kernel-config",
	module + "/internal/verify", module + "/internal/measure", module + "/internal/keypolicy", module + "/internal/psp", module + "/internal/paravisor", module + "/internal/demo", module + "/internal/debian", module + "/internal/bench", module + "/internal/kbs/kbsserver",
	module + "/internal/disk", module + "/internal/uki",
}

const module = "github.com/ampoule-vm/ampoule"

// The budgets of PID 1.
const (
	maxInitSize  = 10_500_000 // bytes, stripped
	maxCocosSize = 11_000_000 // with what --with cocos adds
	maxModules   = 45         // linked in, without our own
)

type pkg struct {
	ImportPath string
	Imports    []string
	Standard   bool
}

// packages lists what args name and, with -deps among them, all below.
func packages(t *testing.T, tags string, args ...string) map[string]pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,Standard", "-tags", tags}, args...)...)
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			t.Fatalf("go list: %v\n%s", err, e.Stderr)
		}
		t.Fatal(err)
	}
	all := map[string]pkg{}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all[p.ImportPath] = p
	}
}

func below(path, root string) bool { return path == root || strings.HasPrefix(path, root+"/") }

// TestDependencies names the chain of imports that brought in what PID 1 must not have.
func TestDependencies(t *testing.T) {
	const server = module + "/internal/cvms"
	for tags, not := range map[string][]string{plainTags: append([]string{server}, never...), cocosTags: never} {
		all := packages(t, tags, "-deps", ".")
		for path := range all {
			for _, bad := range not {
				if below(path, bad) {
					t.Errorf("with tags %s PID 1 links %s: %s", tags, path, strings.Join(chain(all, module+"/init", path), " → "))
				}
			}
		}
		if len(all) < 100 {
			t.Errorf("go list found %d packages, which cannot be all", len(all))
		}
		if _, ok := all[server]; !ok && tags == cocosTags {
			t.Errorf("with tags %s PID 1 does not link %s", tags, server)
		}
	}
}

// chain is a shortest path of imports.
func chain(all map[string]pkg, from, to string) []string {
	paths := [][]string{{from}}
	seen := map[string]bool{from: true}
	for len(paths) > 0 {
		p := paths[0]
		paths = paths[1:]
		last := p[len(p)-1]
		if last == to {
			return p
		}
		for _, next := range all[last].Imports {
			if !seen[next] {
				seen[next] = true
				paths = append(paths, append(append([]string{}, p...), next))
			}
		}
	}
	return nil
}

// TestBudget builds /init as images have it. HTTP/2 may cost what it costs, but no module.
func TestBudget(t *testing.T) {
	var linked []mkimage.Module
	for _, c := range []struct {
		with []string
		most int64
	}{{nil, maxInitSize}, {[]string{mkimage.Cocos}, maxCocosSize}} {
		_, info, err := mkimage.Initramfs(t.Context(), mkimage.Options{Profile: cmdline.Production, SourceDir: "..", With: c.with})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("with %q /init has %d bytes and %d modules", c.with, info.Size, info.Modules)
		if info.Size > c.most {
			t.Errorf("with %q /init has %d bytes, over its budget of %d", c.with, info.Size, c.most)
		}
		if info.Modules > maxModules {
			t.Errorf("with %q /init links %d modules, over its budget of %d", c.with, info.Modules, maxModules)
		}
		if linked != nil && !slices.Equal(linked, info.Linked) {
			t.Errorf("with %q /init links %v, and without %v", c.with, info.Linked, linked)
		}
		linked = info.Linked
	}
}

// arrows says which of our packages may import which. init, cmd/ampoule and test are roots: nothing imports them.
// The guest's and the host's side meet in the leaves only: manifest, evidence, result, cmdline, image.
var arrows = map[string]string{
	"internal/cmdline":             "",
	"internal/cvms":                "internal/result",
	"internal/cvms/cvmstest":       "",
	"internal/egress":              "",
	"internal/evidence":            "",
	"internal/manifest":            "",
	"internal/result":              "",
	"image":                        "internal/inflate internal/pairhash internal/tree",
	"internal/inflate":             "",
	"internal/object":              "internal/evidence internal/inflate internal/tree",
	"internal/openpgp":             "",
	"internal/pairhash":            "",
	"internal/progress":            "",
	"internal/apitest":             "",
	"internal/timeline":            "internal/result",
	"internal/tree":                "",
	"internal/tree/treetest":       "",
	"kernel-config":                "",
	"internal/guestapi":            "",
	"internal/imagepolicy":         "image internal/evidence internal/openpgp",
	"internal/registryauth":        "internal/evidence",
	"internal/secret":              "internal/evidence",
	"internal/measure":             "internal/evidence",
	"internal/tee":                 "internal/evidence",
	"internal/tee/configfs":        "internal/tee internal/evidence",
	"internal/tee/fake":            "internal/tee internal/evidence",
	"internal/tee/sample":          "internal/tee internal/evidence",
	"internal/tee/vtpm":            "internal/tee internal/evidence",
	"internal/paravisor":           "internal/evidence",
	"internal/guest":               "internal/cmdline",
	"internal/source":              "internal/cmdline",
	"internal/sink":                "image internal/evidence internal/result",
	"internal/workload":            "internal/guest",
	"internal/wasmrun":             "",
	"internal/doctor":              "internal/cmdline internal/evidence internal/measure kernel-config mkimage",
	"internal/kbs":                 "internal/evidence internal/tee",
	"internal/verify":              "internal/evidence internal/manifest internal/result", // a receipt is about these
	"internal/kbs/kbsserver":       "internal/verify internal/evidence internal/manifest",
	"internal/keyprovider":         "image",
	"internal/psp":                 "internal/evidence internal/measure internal/result",
	"internal/kbs/kbsserver/store": "internal/evidence",
	"internal/kbs/kbsserver/rego":  "",
	"internal/keypolicy":           "internal/evidence internal/kbs/kbsserver internal/measure",
	"mkimage":                      "kernel-config internal/cmdline internal/debian internal/disk internal/evidence internal/keypolicy internal/manifest internal/measure internal/progress internal/uki",
	"internal/disk":                "",
	"internal/uki":                 "",
	"qemu":                         "qemu/vhostvsock internal/cmdline internal/evidence internal/manifest internal/measure internal/psp internal/result",
	"qemu/vhostvsock":              "",
	"internal/bench":               "image internal/debian internal/inflate",
	"internal/debian":              "",
	"internal/demo":                "image internal/evidence internal/kbs/kbsserver internal/manifest internal/psp internal/verify",
	"internal/demo/linreg":         "",
	"test/probe":                   "",
	"test/quoter":                  "internal/guest",
	"test/bridge":                  "",
	"test/measured":                "",
	"init": "image internal/cmdline internal/cvms internal/egress internal/evidence internal/guest internal/guestapi internal/imagepolicy internal/kbs internal/manifest internal/object internal/registryauth internal/secret internal/result internal/sink internal/source " +
		"internal/tee internal/tee/configfs internal/tee/sample internal/tee/vtpm internal/tree internal/workload",
	"cmd/ampoule": "image mkimage qemu internal/bench internal/cmdline internal/debian internal/demo internal/doctor internal/evidence internal/imagepolicy internal/kbs " +
		"internal/kbs/kbsserver internal/kbs/kbsserver/rego internal/kbs/kbsserver/store internal/keypolicy internal/keyprovider internal/manifest internal/measure internal/object " +
		"internal/progress internal/psp internal/registryauth internal/result internal/sink internal/tee/sample internal/timeline internal/verify",
}

func TestArrows(t *testing.T) {
	all := packages(t, cocosTags, "../...")
	for path, p := range all {
		name := strings.TrimPrefix(path, module+"/")
		if name == "test" {
			continue // has only tests
		}
		allowed, known := arrows[name]
		if !known {
			t.Errorf("package %s has no arrows: say in this table what it may import", name)
		}
		for _, imported := range p.Imports {
			short, ours := strings.CutPrefix(imported, module+"/")
			if ours && !strings.Contains(" "+allowed+" ", " "+short+" ") {
				t.Errorf("%s imports %s: there is no such arrow", name, short)
			}
		}
	}
	for name := range arrows {
		if _, ok := all[module+"/"+name]; !ok {
			t.Errorf("the table has %s, and there is no such package", name)
		}
	}
}
