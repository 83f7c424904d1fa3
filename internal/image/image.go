// Package image is the noun: a read-only root filesystem with its manifest,
// kept by digest, named by the user, shared by every VM. Sources stand beneath
// (debian: a recipe made with mmdebstrap). It does not boot anything.
package image

// Manifest describes an image; it lies beside the rootfs as manifest.json.
type Manifest struct {
	Schema int    `json:"schema"` // 1
	Name   string `json:"name"`   // of the recipe or reference it came from
	// Digest is "sha256:…" of rootfs.ext4 and the image's address.
	Digest string `json:"digest"`
	Size   int64  `json:"size"` // bytes of rootfs.ext4
	// Used is the bytes of file content in it.
	Used         int64  `json:"used"`
	Architecture string `json:"architecture"` // "amd64"
	OS           string `json:"os"`           // "debian 12"
	// Init is the image's own init ("/sbin/init"), or "" where it has none.
	Init string `json:"init"`
	// Kernel is the name of the kernel it boots with ("generic-6.12").
	Kernel   string    `json:"kernel"`
	Source   string    `json:"source"` // "recipe:debian-bookworm"
	Created  string    `json:"created"`
	Packages []Package `json:"packages,omitempty"`
	// Notes are things worth saying ("made without mise: …").
	Notes []string `json:"notes,omitempty"`
}

// Package is one package of a distribution as installed in the image.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Arch    string `json:"arch,omitempty"`
}

// Image is a stored image.
type Image struct {
	Names    []string
	Manifest Manifest
	Rootfs   string // path of rootfs.ext4
}
