# Runs inside the image: makes the packages in /opt/apt a repository, the only one that its apt knows.
set -e
cd /opt/apt
for deb in *.deb; do
  dpkg-deb --field "$deb"
  echo "Filename: ./$deb"
  echo "Size: $(stat --format=%s "$deb")"
  echo "SHA256: $(sha256sum "$deb" | cut -d' ' -f1)"
  echo
done >Packages
rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*
echo 'deb [trusted=yes] file:/opt/apt ./' >/etc/apt/sources.list
apt-get update --quiet
