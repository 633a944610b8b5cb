"""The DreamBooth paper's evaluation (Ruiz et al., arXiv 2208.12242, section 4) with this trainer:
`python -m benchmarks.dreambench`.

For each subject, a model is trained and generates images for each prompt. DINO and CLIP-I are the
mean cosine over all pairs of an image and a photo, with DINO ViT-S/16 and with CLIP. CLIP-T is the
mean cosine of each image and its prompt. PRES is DINO of images of the class. Each measure is
averaged over a subject, then over the subjects.

From the paper, and the default here: 30 subjects, 25 prompts and 4 images of each; training on "a
[identifier] [class]" for about 1000 steps at 5e-6 (section 3.3, for Stable Diffusion), with about
1000 images of "a [class]" of weight 1.

Our choices, where the paper and its supplement say nothing: the identifier sks, one photo per step,
the text encoder frozen (the paper says "possibly" trained), AdamW, fp32, DDIM with 50 steps and
guidance 7.5 (for class images too, where the paper uses an ancestral sampler), the seeds, the
number of class images for PRES, and CLIP-T's prompts without the identifier, which CLIP cannot
know. The paper does not name the version of CLIP either.

DIV, the paper's other measure of prior preservation, uses LPIPS. Our diversity does not, and the
two cannot be compared."""
