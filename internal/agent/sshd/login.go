package sshd

import (
	"os"
	"path/filepath"
	"strings"
)

// login is who logs in: root, as the image describes root.
type login struct {
	home  string
	shell string   // "" where the image has none
	env   []string // KEY=value
}

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// shells are tried in order where the image names none that is there.
var shells = []string{"/bin/bash", "/bin/sh", "/usr/bin/sh", "/bin/ash"}

// readLogin reads root's line of passwd and the environment of all logins
// beneath root ("" is "/").
func readLogin(root string) login {
	root = "/" + root
	l := login{home: "/root"}
	passwd, _ := os.ReadFile(filepath.Join(root, "etc/passwd"))
	home, shell := passwdRoot(string(passwd))
	if isDir(filepath.Join(root, home)) && home != "" {
		l.home = home
	}
	for _, s := range append([]string{shell}, shells...) {
		info, err := os.Stat(filepath.Join(root, s))
		if s != "" && err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			l.shell = s
			break
		}
	}
	environment, _ := os.ReadFile(filepath.Join(root, "etc/environment"))
	l.env = []string{"PATH=" + defaultPath, "HOME=" + l.home, "USER=root", "LOGNAME=root"}
	if l.shell != "" {
		l.env = append(l.env, "SHELL="+l.shell)
	}
	l.env = append(l.env, parseEnvironment(string(environment))...)
	return l
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// passwdRoot finds root's home and shell in passwd.
func passwdRoot(passwd string) (home, shell string) {
	for line := range strings.Lines(passwd) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) == 7 && f[0] == "root" {
			return f[5], f[6]
		}
	}
	return "", ""
}

// parseEnvironment reads /etc/environment as pam_env does, simply: KEY=value
// lines, quotes around the value taken off.
func parseEnvironment(text string) []string {
	var env []string
	for line := range strings.Lines(text) {
		line = strings.TrimPrefix(strings.TrimSpace(line), "export ")
		key, value, ok := strings.Cut(line, "=")
		if !ok || !validName(key) || strings.ContainsRune(value, 0) {
			continue
		}
		if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
			value = value[1 : n-1]
		}
		env = append(env, key+"="+value)
	}
	return env
}

func validName(s string) bool {
	for i, r := range s {
		if !(r == '_' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || i > 0 && r >= '0' && r <= '9') {
			return false
		}
	}
	return s != ""
}
