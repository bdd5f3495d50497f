package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"testing"

	"github.com/ampoule-vm/ampoule/internal/cmdline"
	"github.com/ampoule-vm/ampoule/internal/manifest"
	"github.com/ampoule-vm/ampoule/internal/result"
)

// TestBinding: every binding that is there must hold, whatever else holds; none is enough only where that is allowed.
func TestBinding(t *testing.T) {
	ours, other := sha256.Sum256([]byte("ours")), sha256.Sum256([]byte("other"))
	sum, otherSum := sha512.Sum384([]byte("ours")), sha512.Sum384([]byte("other"))
	lastBit := ours
	lastBit[31] ^= 1
	lastBitOfSum := sum
	lastBitOfSum[47] ^= 1
	var none [32]byte
	for name, c := range map[string]struct {
		hostData [32]byte
		pin      []byte
		unbound  bool
		want     string // "": refused
	}{
		"HOST_DATA is the manifest's":           {ours, nil, false, result.BindLaunch},
		"HOST_DATA is another manifest's":       {other, nil, false, ""},
		"HOST_DATA is off by one bit":           {lastBit, nil, false, ""},
		"HOST_DATA is a lone last bit":          {[32]byte{31: 1}, nil, false, ""},
		"the pin is the manifest's":             {none, sum[:], false, result.BindPinned},
		"the pin is another manifest's":         {none, otherSum[:], false, ""},
		"the pin is off by one bit":             {none, lastBitOfSum[:], false, ""},
		"the pin is of zeros":                   {none, make([]byte, 48), false, ""},
		"the pin is a prefix":                   {none, sum[:47], false, ""},
		"the pin is there and empty":            {none, []byte{}, false, ""},
		"both hold":                             {ours, sum[:], false, result.BindLaunch},
		"HOST_DATA holds and the pin does not":  {ours, otherSum[:], false, ""},
		"the pin holds and HOST_DATA does not":  {other, sum[:], false, ""},
		"nothing is there":                      {none, nil, false, ""},
		"nothing is there, which is allowed":    {none, nil, true, result.BindNone},
		"that allowance does not loosen a hash": {other, nil, true, ""},
		"nor a pin":                             {none, otherSum[:], true, ""},
		"nor one beside a HOST_DATA that holds": {ours, otherSum[:], true, ""},
		"and does not weaken what is reported":  {ours, nil, true, result.BindLaunch},
		"nor with a pin":                        {none, sum[:], true, result.BindPinned},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := binding(c.hostData, ours, options(c.pin, c.unbound), sum)
			if got != c.want || (err != nil) != (c.want == "") {
				t.Errorf("binding %q, error %v; want %q", got, err, c.want)
			}
		})
	}
}

func options(pin []byte, unbound bool) cmdline.Options {
	o := cmdline.Options{SHA384: pin, Allow: cmdline.Allow{}}
	if unbound {
		o.Allow[cmdline.AllowUnbound] = true
	}
	return o
}

// FuzzBinding holds binding against what it is for, with the digests of a manifest that is itself arbitrary.
func FuzzBinding(f *testing.F) {
	raw := []byte(`{"version":1}`)
	digest, sum := manifest.InitdataDigest(manifest.Wrap(raw)), sha512.Sum384(raw)
	f.Add(raw, digest[:], sum[:], true, false)
	f.Add(raw, digest[:], []byte(nil), false, true)
	f.Add(raw, []byte(nil), sum[:], true, true)
	f.Add(raw, []byte(nil), []byte(nil), false, true)
	f.Add(raw, []byte(nil), []byte(nil), false, false)
	f.Add([]byte("{}"), digest[:], sum[:], true, true)
	f.Fuzz(func(t *testing.T, raw, host, pin []byte, pinned, unbound bool) {
		digest, sum := manifest.InitdataDigest(manifest.Wrap(raw)), sha512.Sum384(raw)
		var hostData [32]byte
		copy(hostData[:], host)
		if !pinned {
			pin = nil
		} else if pin == nil {
			pin = []byte{}
		}
		got, err := binding(hostData, digest, options(pin, unbound), sum)
		launch, pinHolds := hostData == digest, pinned && bytes.Equal(pin, sum[:])
		zero := hostData == [32]byte{}
		var want string
		switch {
		case launch && (pinHolds || !pinned):
			want = result.BindLaunch
		case zero && pinHolds:
			want = result.BindPinned
		case zero && !pinned && unbound:
			want = result.BindNone
		}
		if got != want || (err == nil) != (want != "") {
			t.Errorf("HOST_DATA %x, pin %x, unbound %v: binding %q, error %v; want %q", hostData, pin, unbound, got, err, want)
		}
	})
}
