package main

import (
	"crypto/x509"
	"sync"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// trustPublicRoots gives crypto/x509 Mozilla's roots, for registries and brokers whose authority the manifest does not pin: PID 1 has no
// /etc/ssl. Package fallback does the same in an init function, which the sandbox's stub would run as well, and a boot without a network:
// its 140 certificates are most of what a start of this program takes.
var trustPublicRoots = sync.OnceFunc(func() {
	pool := x509.NewCertPool()
	for root := range bundle.Roots() {
		c, err := x509.ParseCertificate(root.Certificate)
		if err != nil {
			panic(err) // they are part of this program
		}
		if root.Constraint == nil {
			pool.AddCert(c)
		} else {
			pool.AddCertWithConstraint(c, root.Constraint)
		}
	}
	x509.SetFallbackRoots(pool)
})
