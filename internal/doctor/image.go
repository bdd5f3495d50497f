package doctor

import (
	"strings"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/mkimage"
)

// relaxations are what a command line may permit, and what that costs.
var relaxations = map[string]string{
	cmdline.AllowHTTP:     "brokers and files over plain http: whoever is on the way sees which keys and files are asked for, and can deny them",
	cmdline.AllowTag:      "tags in place of digests: the registry chooses what runs, and the receipt says so",
	cmdline.AllowUnsealed: "results without recipients: the host gets them in clear",
	cmdline.AllowUnbound:  "a manifest that nothing ties to the launch: the host chooses it",
	cmdline.AllowSample:   "evidence of CoCo's sample attester: it proves nothing",
	cmdline.AllowErrors:   "error texts on the console: they name files and hosts, and the host reads them",
}

// Image looks at a folder that ampoule build made.
func Image(r *Report, dir string) {
	info, err := mkimage.Load(dir)
	if err != nil {
		r.add("image", "files", Bad, "build it again: ampoule build --out "+dir, "%v", err)
		return
	}
	r.add("image", "files", OK, "", "all are as %s says", mkimage.InfoFile)
	if info.Profile == cmdline.Production {
		r.add("image", "profile", OK, "", "production")
	} else {
		r.add("image", "profile", OK, "", "%s", info.Profile)
		r.risk("a simulation image keeps nothing from the host: it is for development, and no verifier takes its evidence unless it is told to")
	}
	if info.Kernel.Label == mkimage.Pinned {
		r.add("image", "kernel", OK, "", "%s from the pinned source", info.Kernel.Version)
	} else {
		r.add("image", "kernel", Bad, "build it with the source that kernel-config/source.json names", "%s from a source that is not the pinned one: others cannot reproduce it", info.Kernel.Version)
	}
	o, err := cmdline.Parse(info.Cmdline)
	if err != nil {
		r.add("image", "command line", Bad, "build it again", "%v", err)
		return
	}
	var lacks []string
	for _, p := range mkimage.Parameters() {
		if !strings.Contains(" "+info.Cmdline+" ", " "+p+" ") {
			lacks = append(lacks, p)
		}
	}
	if len(lacks) > 0 {
		r.add("image", "command line", Bad, "build it again with this version", "lacks %s", strings.Join(lacks, " "))
	} else {
		r.add("image", "command line", OK, "", "has all that hardens the kernel")
	}
	for _, a := range info.Allow {
		if o.Allow.Has(a) {
			r.risk("the image permits %s", relaxations[a])
		}
	}
}
